"""Whether the machines' identity may use the bucket, from Google's policies: without it they cannot even say so."""

from electra_flax.errors import UserError
from tpu.answers import Policy, Project
from tpu.gcloud import Gcloud
from tpu.settings import Settings

# Roles that let read, write, list and delete objects; of a project, those of its editors too.
_ENOUGH = ("roles/storage.admin", "roles/storage.objectAdmin", "roles/storage.objectUser")
_OF_PROJECT = (*_ENOUGH, "roles/editor", "roles/owner")
_EVERYBODY = ("allUsers", "allAuthenticatedUsers")
# Members and roles whose content these policies do not say.
_OPAQUE_MEMBERS = ("group:", "domain:", "principalSet:")
_OPAQUE_ROLES = ("projects/", "organizations/")


def check_identity(settings: Settings, gcloud: Gcloud) -> tuple[str, str]:
    """Return a finding: its level and text. Raises GcloudError where the project cannot be described."""
    account, which = settings.service_account, "service_account"
    if not account:
        project = gcloud.answer(["projects", "describe", settings.project, "--format=json"], Project)
        if not project.projectNumber:
            return "warning", f"identity: cannot find the number of project {settings.project}, nor its default account"
        account = f"{project.projectNumber}-compute@developer.gserviceaccount.com"
        which = "service_account not set: the project's default"
    fix = (
        f"gcloud storage buckets add-iam-policy-binding gs://{settings.bucket} --member=serviceAccount:{account} "
        "--role=roles/storage.objectAdmin"
    )
    unknown = []
    for name, command, roles in (
        ("bucket", ["storage", "buckets", "get-iam-policy", f"gs://{settings.bucket}", "--format=json"], _ENOUGH),
        ("project", ["projects", "get-iam-policy", settings.project, "--format=json"], _OF_PROJECT),
    ):
        try:
            policy = gcloud.answer(command, Policy)
        except UserError as error:
            unknown.append(f"the {name}'s policy cannot be read ({error})")
            continue
        if _grants(policy, account, roles):
            return "ok", f"{account} may use the bucket ({which}, by the {name}'s policy)"
        if _may_grant(policy, account):
            unknown.append(f"the {name}'s policy has groups or custom roles")
    text = f"{which}: {account} has no role for gs://{settings.bucket}"
    if unknown:
        return "warning", f"{text} that can be seen ({'; '.join(unknown)}): if it has none, {fix}"
    return "problem", f"{text}: {fix}"


def _grants(policy: Policy, account: str, roles: tuple[str, ...]) -> bool:
    members = {f"serviceAccount:{account}", *_EVERYBODY}
    return any(binding.role in roles and members & set(binding.members) for binding in policy.bindings)


def _may_grant(policy: Policy, account: str) -> bool:
    """Return whether the policy leaves open what the account may do."""
    for binding in policy.bindings:
        is_opaque_role = binding.role.startswith(_OPAQUE_ROLES)
        if is_opaque_role and f"serviceAccount:{account}" in binding.members:
            return True
        if (is_opaque_role or binding.role in _OF_PROJECT) and any(
            member.startswith(_OPAQUE_MEMBERS) for member in binding.members
        ):
            return True
    return False
